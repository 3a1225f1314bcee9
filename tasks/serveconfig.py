"""Parameters of `./convoy serve`: section `serve` of params.yaml."""

from pydantic import Field

from data.parameters import Parameters


class ServeConfig(Parameters):
    """How a model is served, and what of a request is refused."""

    poll_s: float = Field(gt=0, description="seconds between two looks at where the alias stands")
    replicas: int = Field(ge=1, description="processes that answer, each with the model in its memory")
    threads: int = Field(ge=1, description="CPUs that each of them computes on")
    gpus: float = Field(
        ge=0, le=1, description="share of a GPU that each of them computes on; 0: on its CPUs"
    )
    batch_requests: int = Field(
        ge=1, description="requests that wait are answered together, so many at a time"
    )
    batch_wait_ms: float = Field(ge=0, description="how long a request waits for others, where it is alone")
    max_request_mb: float = Field(
        gt=0, description="a request that is larger, in 10⁶ bytes, is refused (413)"
    )
    max_images: int = Field(ge=1, description="a request with more images is refused (413)")
    max_megapixels: float = Field(gt=0, description="a request with a larger picture is refused (413)")
    max_requests: int = Field(
        ge=1, description="a replica that has so many requests under way refuses more (429)"
    )
    timeout_s: float = Field(gt=0, description="a request without an answer by then is given up (503)")
