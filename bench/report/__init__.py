"""Views of a run: each module here is a pure function of the results table; `bench.report.write` puts them on disk."""
