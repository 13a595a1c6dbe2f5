"""Each command's stage: files are read and checked, the core is called, files are written."""
