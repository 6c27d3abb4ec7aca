"""What a recording says, in words, in the terminal and as an HTML page."""

from relume.report.html import write_html as write_html
from relume.report.terminal import LiveView as LiveView
from relume.report.terminal import print_verdict as print_verdict
from relume.report.verdict import verdict as verdict
