"""Agents: learned policies, policies to compare with, and the privileged planner."""
