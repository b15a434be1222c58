"""What several passes need on a live denoiser: step clock, branches, block stack."""
