"""What holds for every input of a box: bounds of pre-activations, units certified dead or linear."""

from relume.prove.certify.box import box as box
from relume.prove.certify.certificate import Certificate as Certificate
from relume.prove.certify.certificate import SiteCertificate as SiteCertificate
from relume.prove.certify.certify import certify as certify
