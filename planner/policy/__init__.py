"""The file that a search concludes with: read strictly, matched to a pipeline, applied."""
