"""The data pipeline: texts and posts in, an SFT set and a GRPO set out; one stage a file."""
