"""Tools for AI agents, by the Model Context Protocol (MCP)."""

from pathlib import Path

SKILL = Path(__file__).parent / "SKILL.md"
"""What an agent needs to know to use the tools well."""

LLMS_TXT = Path(__file__).parent / "llms.txt"
"""What a program that reads the service's pages finds at `/llms.txt`."""
