package schedule

// A queue holds a lane's deliveries that wait for their attempt: first attempts in order
// of arrival, and apart from them retries and replays, which have a turn now and then.
type queue struct {
	first   []*Delivery // what was parked meanwhile is skipped
	late    []*Delivery // retries and replays
	turns   int         // first attempts since the last late one
	held    int         // queued and running
	stocked int         // queued, from the table
	bytes   int64       // of the bodies of all that is held
}

// lateTurn is how many of a lane's attempts are first ones before one that comes
// late has its turn, where both wait: so retries of a busy endpoint get a quarter.
const lateTurn = 3

func (q *queue) empty() bool { return len(q.first)+len(q.late) == 0 }

func (q *queue) push(d *Delivery) {
	if d.late {
		q.late = append(q.late, d)
	} else {
		q.first = append(q.first, d)
	}
}

// turn says from which the next attempt is: first attempts, but for a turn of what
// comes late. It is nil where only that waits and may not be started.
func (q *queue) turn(lateMay bool) *[]*Delivery {
	switch {
	case lateMay && len(q.late) > 0 && (len(q.first) == 0 || q.turns >= lateTurn):
		return &q.late
	case len(q.first) > 0:
		return &q.first
	default:
		return nil
	}
}

// pop takes the head of what turn has chosen.
func (q *queue) pop(from *[]*Delivery) *Delivery {
	d := (*from)[0]
	(*from)[0] = nil
	*from = (*from)[1:]
	if d.late {
		q.turns = 0
	} else {
		q.turns++
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
