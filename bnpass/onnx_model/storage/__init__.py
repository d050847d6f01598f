"""Where the numbers of large models lie: data files, and large model files without weights."""
