"""Why a policy is what it is: one self-contained page of figures, pictures and tables."""
