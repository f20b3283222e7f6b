package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// Retention says which backups of a VM are kept: a backup is kept when one of the rules keeps it. A rule
// that is 0 keeps none. A day, an ISO week (from Monday) and a month count only where there is a backup in
// it, and the newest backup of each is the one that is kept.
type Retention struct {
	KeepLast    int    `help:"Keep the newest N." placeholder:"N"`
	KeepDaily   int    `help:"Keep the newest of each of the last N days that have a backup." placeholder:"N"`
	KeepWeekly  int    `help:"Keep the newest of each of the last N ISO weeks that have a backup." placeholder:"N"`
	KeepMonthly int    `help:"Keep the newest of each of the last N months that have a backup." placeholder:"N"`
	TimeZone    string `help:"Time zone in which days, weeks and months begin, such as Europe/Berlin." default:"UTC" placeholder:"TZ"`
}

// check returns the time zone. Rules that keep nothing are refused.
func (r Retention) check() (*time.Location, error) {
	sum := 0
	for _, rule := range r.rules() {
		if rule.n < 0 {
			return nil, usagef("--keep-%s %d is below 0", rule.name, rule.n)
		}
		sum += rule.n
	}
	if sum == 0 {
		return nil, &Error{
			Class: Usage, Err: fmt.Errorf("nothing would be kept"),
			Hint: "Give at least one of --keep-last, --keep-daily, --keep-weekly and --keep-monthly.",
		}
	}
	zone, err := time.LoadLocation(r.TimeZone)
	if err != nil || r.TimeZone == "Local" {
		return nil, usagef("there is no time zone %q", r.TimeZone)
	}
	return zone, nil
}

type rule struct {
	name string
	n    int
	// period names the one a time is in; each backup has its own where it is nil.
	period func(time.Time) string
}

func (r Retention) rules() []rule {
	return []rule{
		{"last", r.KeepLast, nil},
		{"daily", r.KeepDaily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", r.KeepWeekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", r.KeepMonthly, func(t time.Time) string { return t.Format("2006-01") }},
	}
}

// keeps returns, for each of the backups of one VM that a rule keeps, the rules that do, by its index. A backup
// that was made out of a chain shows the same moment as the chain's newest: they count as one, and the one that
// needs no other is what a rule keeps.
func (r Retention) keeps(backups []messages.CatalogEntry, zone *time.Location) map[int][]string {
	newest := make([]int, len(backups))
	for i := range newest {
		newest[i] = i
	}
	slices.SortFunc(newest, func(x, y int) int {
		a, b := backups[x], backups[y]
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), fullFirst(a, b), cmp.Compare(b.ID, a.ID))
	})
	newest = slices.CompactFunc(newest, func(x, y int) bool { return sameMoment(backups[x], backups[y]) })
	kept := map[int][]string{}
	for _, rule := range r.rules() {
		left, last := rule.n, ""
		for _, i := range newest {
			if left == 0 {
				break
			}
			why := rule.name
			if rule.period != nil {
				period := rule.period(backups[i].CreatedAt.In(zone))
				if period == last {
					continue
				}
				last, why = period, rule.name+" "+period
			}
			kept[i] = append(kept[i], why)
			left--
		}
	}
	return kept
}

// sameMoment says whether one of two backups was made out of the other, or both out of one. That two that were taken have
// the same time is chance, and neither can stand for the other.
func sameMoment(a, b messages.CatalogEntry) bool {
	return a.CreatedAt.Equal(b.CreatedAt) && (a.ConsolidatedFrom != "" || b.ConsolidatedFrom != "")
}

func fullFirst(a, b messages.CatalogEntry) int {
	switch {
	case a.Parent == "" && b.Parent != "":
		return -1
	case a.Parent != "" && b.Parent == "":
		return 1
	}
	return 0
}
