"""What the gradients of rules are worth: they are compared with how the loss really changes."""

from optlayers.auditing.audit import audit
from optlayers.auditing.report import GradientAudit

__all__ = ["GradientAudit", "audit"]
