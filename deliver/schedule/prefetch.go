package schedule

import "github.com/walhook/walhook/internal/webhook"

// A prefetch is a lane's position in the table, and which of its rows wait to be cancelled.
type prefetch struct {
	spilled       bool
	rows          bool // rows may be due in the table that are not in memory
	paging        bool // a page is under way
	overflown     bool // it had rows that found no room
	after         webhook.PageEnd
	parking       int    // parked deliveries whose row is not committed
	parks         uint64 // how many have been committed: tells whether a page is complete
	passParks     uint64 // as of the first page, when after was the beginning
	toBeCancelled bool   // rows wait in the table to be cancelled
	cancelling    bool   // they are just being
}

// begin begins a page and returns its position.
func (p *prefetch) begin() webhook.PageEnd {
	if p.after == (webhook.PageEnd{}) {
		p.passParks = p.parks
	}
	p.paging = true
	return p.after
}

// end takes the end of a page and reports whether there may be more. The next page
// begins there. Fewer rows than asked for are all that is left. But what was parked
// since the first of these pages may sort before it, and is found from the beginning.
func (p *prefetch) end(got, size int, at webhook.PageEnd) (left bool) {
	left = got >= size || p.overflown
	p.overflown, p.paging = false, false
	if p.after = at; !left {
		p.after = webhook.PageEnd{}
	}
	p.rows = left || p.parks != p.passParks
	return left
}

// restart resets the position: rows just put back may sort before the last page, and
// before the one under way.
func (p *prefetch) restart() {
	p.after = webhook.PageEnd{}
	p.parks++
}
