"""A new checkpoint beside the old one, verified, then put in its place.

writer     what a checkpoint shall become, carried out on a folder or beside it
places     what may be written where
serialize  a safetensors file, written tensor by tensor and read back
copying    the other files, with all that the file system knows of them
staging    the folders in which all this is made, and what killed runs left
exchange   the renames that put it in its place, and undo themselves
"""
