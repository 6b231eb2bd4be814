"""Re-dense, adjust and choose: the steps of SDS."""
