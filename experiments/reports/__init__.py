"""Many runs on one page: what is gathered of them, the figures and tables, and the page itself."""
