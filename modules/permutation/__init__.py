"""Orders of input channels under N:M sparsity: searched, learned, folded into the model."""
