package schedule

// A queue holds a lane's waiting deliveries. First attempts come in order of arrival.
// Low-priority deliveries (retries and replays) get every fourth attempt.
type queue struct {
	first      []*Delivery // may hold parked deliveries, which are skipped
	low        []*Delivery // retries and replays
	sinceLow   int         // first attempts since the last low-priority one
	held       int         // queued and running
	prefetched int         // queued, from the table
	bytes      int64       // of the bodies of all that is held
}

// lowTurn is how many first attempts a lane makes before one of low priority, where both
// wait. So retries of a busy endpoint get a quarter.
const lowTurn = 3

func (q *queue) empty() bool { return len(q.first)+len(q.low) == 0 }

func (q *queue) push(d *Delivery) {
	if d.low {
		q.low = append(q.low, d)
	} else {
		q.first = append(q.first, d)
	}
}

// choose returns the list that the next attempt comes from. It returns nil where nothing
// waits, or only low-priority deliveries that may not start.
func (q *queue) choose(lowMay bool) *[]*Delivery {
	switch {
	case lowMay && len(q.low) > 0 && (len(q.first) == 0 || q.sinceLow >= lowTurn):
		return &q.low
	case len(q.first) > 0:
		return &q.first
	default:
		return nil
	}
}

// pop removes the head of the list that choose returned.
func (q *queue) pop(from *[]*Delivery) *Delivery {
	d := (*from)[0]
	(*from)[0] = nil
	*from = (*from)[1:]
	if d.low {
		q.sinceLow = 0
	} else {
		q.sinceLow++
	}
	return d
}

// trim drops from the head of the queue what has been parked.
func (q *queue) trim() {
	i := 0
	for i < len(q.first) && q.first[i].stage != queued {
		q.first[i] = nil
		i++
	}
	if q.first = q.first[i:]; len(q.first) == 0 {
		q.first = nil
	}
}
