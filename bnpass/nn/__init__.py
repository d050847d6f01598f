"""What training and statistics both need of torch modules: norms, calls, processes."""
