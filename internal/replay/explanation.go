package replay

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
)

// Explanation says what the gates of a config decide about a request, and why.
type Explanation struct {
	Allowed bool           `json:"allowed"`
	Result  refusal.Result `json:"result"`
	Reason  refusal.Reason `json:"reason,omitempty"`
	Status  int            `json:"status,omitempty"` // of a refusal
	Video   string         `json:"video,omitempty"`
	TokenID string         `json:"token_id,omitempty"`
	KeyID   string         `json:"key_id,omitempty"`
	Client  string         `json:"client_ip,omitempty"`
	Country string         `json:"country,omitempty"`
	At      time.Time      `json:"at"`
	Checks  []Check        `json:"checks"`
	Notes   []string       `json:"notes,omitempty"`
}

// Check is a check of a gate with its outcome.
type Check struct {
	Check   string         `json:"check"`
	Outcome Outcome        `json:"outcome"`
	Reason  refusal.Reason `json:"reason,omitempty"`
	Details []string       `json:"details"`
}

// Outcome is the outcome of a check.
type Outcome string

// The outcomes of checks.
const (
	Pass   Outcome = "pass"
	Refuse Outcome = "refuse"
	Report Outcome = "report"  // would refuse
	Skip   Outcome = "skipped" // not decided, because a check before it refuses
)

// Print writes the explanation for people: a row for each check, the notes and the outcome.
func (e *Explanation) Print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, check := range e.Checks {
		first := ""
		details := check.Details
		if len(details) > 0 {
			first, details = details[0], details[1:]
		}
		name := string(check.Outcome)
		if check.Outcome == Report {
			name = "would refuse"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", check.Check, name, first)
		for _, detail := range details {
			fmt.Fprintf(table, "\t\t%s\n", detail)
		}
	}
	fmt.Fprintf(table, "\n")
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range e.Notes {
		fmt.Fprintf(out, "note: %s\n", note)
	}
	_, err := fmt.Fprintln(out, e.summary())
	return err
}

func (e *Explanation) summary() string {
	who := fmt.Sprintf("for %s at %s", cmp.Or(e.Client, "an unknown address"), e.At.Format(time.RFC3339))
	switch e.Result {
	case refusal.Refused:
		return fmt.Sprintf("refused with %d %s, %s", e.Status, e.Reason, who)
	case refusal.WouldRefuse:
		return fmt.Sprintf("allowed, because it is only reported: would be refused with %d %s, %s", e.Reason.Status(), e.Reason, who)
	default:
		return fmt.Sprintf("allowed, %s", who)
	}
}

// InWords returns a duration for people: in whole days from three days on.
func InWords(d time.Duration) string {
	if days := int(d.Hours() / 24); days >= 3 {
		return fmt.Sprintf("%d days", days)
	}
	return d.String()
}
