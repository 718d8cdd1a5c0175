"""Storage on disk or in a bucket: the workdir, its files and checkpoints."""
