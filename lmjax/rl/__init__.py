"""Reinforcement learning: rollouts, rewards, advantages, policy losses and health."""
