"""Initial value problems, and the probability flow as one."""
