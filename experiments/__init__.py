"""Experiments: one small script for each question, all on one harness.  Commands and records: results/README.md."""
