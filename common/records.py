"""Records of files that are read by other processes, and by later versions."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Unchangeable, without fields that nobody knows, without numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
