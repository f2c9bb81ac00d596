"""results.csv: the frame as it is."""

import pandas as pd


def render(frame: pd.DataFrame) -> str:
    """One header line, one line a case; missing values are empty, infinities `inf`, floats unrounded."""
    text: str = frame.to_csv(index=False, na_rep="", lineterminator="\n")
    return text
