"""What can be said of a model for certain: which units can never fire, and a smaller model without them."""

from relume.prove.certify.box import box as box
