"""The stages of a build: each one library call, found in the store when it was done before.

A stage is a function from content digests and parameters to files. Its key is the digest of all
that decides them; on a hit nothing runs, on a miss the outputs are uploaded before the record of
the stage is written, so that a run that dies continues from the last finished stage anywhere.
"""
