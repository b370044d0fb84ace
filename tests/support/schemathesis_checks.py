"""A check of schemathesis: what the schema allows, the service accepts.

It is schemathesis's own check `positive_data_acceptance`, but for rules that no JSON schema can
express: those between two numbers or times, and those about what is outside the request.
"""

import re

BEYOND_SCHEMAS = {
    "two numbers": r"can never be: give a k|must be below|is shorter than 'min_interval'"
    r"|^INVALID_REQUEST Windows of .* are more than",
    "two times": r"The range is empty|'ends_at' must be after 'starts_at'",
    "what an Idempotency-Key was used for": r"^IDEMPOTENCY_MISMATCH",
    "which frames are kept": r"^FRAMES_EXPIRED",
    "which names are known": r"no address is known for",
    "which streams are attached": r"No stream is attached|Several streams are attached",
    "what a file or a camera shows": r"^STREAM_",
    "what a regular expression matches": r"would silence everything|the regular expression",
    "which parameters go together": r"need a text: give q|has one page: leave out cursor",
    "to what a model can be held": r"The JSON schema|The choice",
}
"""Why a request of the right form may be refused, and how the error begins."""


def _register() -> None:
    # not above: house rules look at what tests import, and it takes seconds
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    @schemathesis.check
    def accepts_what_the_schema_allows(
        ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
    ) -> bool | None:
        """Refuse a 4xx to a valid request, unless its reason is one that no schema can express."""
        if response.status_code in (400, 410, 422):
            error = response.json()["error"]
            said = f"{error['code']} {error['message']}"
            if any(re.search(reason, said) for reason in BEYOND_SCHEMAS.values()):
                return None
        return positive_data_acceptance(ctx, response, case)


_register()
