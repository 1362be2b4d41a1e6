"""Records of files that are read by other processes, and by later versions."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Immutable model that rejects unknown fields, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """The first problem of a record in one line: where it is, and what is wrong."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
