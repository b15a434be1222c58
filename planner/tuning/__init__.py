"""Ask, run, tell; race; choose; certify on unseen prompts; write the policy."""
