"""What is raised where a file cannot be used as a video."""


class VideoError(ValueError):
    """A file cannot be used as a video. The message names the file and says why."""


class PartError(VideoError):
    """One part of a video cannot be used; other parts of the same video may be usable."""


class TimeLimitError(VideoError):
    """A read took too long and was given up. Its disk may be out of reach."""


class OrderError(VideoError):
    """The frames of a video come in another order than that of their time stamps."""
