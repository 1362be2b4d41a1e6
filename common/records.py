"""Records of files that are read by other processes, and by later versions."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable model that rejects unknown fields, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
