"""The processors that a pipeline can run on, one file each."""
