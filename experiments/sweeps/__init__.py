"""Many runs from one plan: which they are, where they are carried out, and what became of them."""
