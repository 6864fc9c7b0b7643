"""The paper's questions asked of somebody's own model."""
