"""A repo of the Hugging Face Hub as a folder of files, read in ranges, and a pull request on it.

session   what is huggingface_hub's: its connection, its token, its cache
patience  how often a step is tried, and how long it may take
addresses what of an address may be followed, and shown
client    one request: redirects, where the token goes, time limits
refusals  what a refusal of the Hub means, as an error with a hint
entry     one file as the Hub names it: length and hash
tree      the files of a repo at one commit, as the Hub lists them
digests   what the hashes prove that a server names
heads     what the heads of answers say of a file, each held against what is known of it
file      one file, read in ranges, each answer held against what is known of it
cached    files in huggingface_hub's cache, held against their names there
ahead     ranges fetched by several connections before they are asked for
folder    a folder of a repo, pinned to one commit
push      new files, offered as a pull request
offered   the pull requests that are open already
"""
