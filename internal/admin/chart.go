package admin

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// The charts' coordinates. The browser stretches them to the width that there is, so nothing in
// them may be text.
const (
	chartWidth  = 720.0
	chartHeight = 120.0
)

// A chart is drawn as SVG on the server: the newest sample is at the right edge.
type chart struct {
	Title         string
	Summary       string // for who cannot see it
	Lines         []chartLine
	Top, Mid, Low string // what the scale says
	Empty         string // why there is nothing to see
}

// A chartLine is a series. Gaps, where there was nothing to measure, part it.
type chartLine struct {
	Class string // in the style sheet
	Name  string
	Now   string   // the newest value
	Areas []string // polygons, to the ground
	Parts []string // polylines
}

// throughput draws attempts per second.
func throughput(samples []moment) chart {
	c := chart{Title: "Attempts per second"}
	most := 0.0
	for _, s := range samples {
		most = max(most, s.delivered, s.failed)
	}
	scale := niceCeiling(most)
	series := func(class, name string, of func(moment) float64) chartLine {
		l := chartLine{Class: class, Name: name}
		l.draw(samples, func(s moment) (float64, bool) { return of(s) / scale, true })
		if len(samples) > 0 {
			l.Now = perSecond(of(samples[len(samples)-1]))
		}
		return l
	}
	c.Lines = []chartLine{
		series("good", "delivered", func(s moment) float64 { return s.delivered }),
		series("bad", "failed", func(s moment) float64 { return s.failed }),
	}
	c.Top, c.Mid, c.Low = perSecond(scale), perSecond(scale/2), "0"
	c.describe(samples)
	return c
}

// latency draws how long first attempts came after the commit, on a scale where each line is ten
// times the one below: a receiver next door takes 1 ms, and one that is down days.
func latency(samples []moment) chart {
	c := chart{Title: "From commit to first attempt"}
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range samples {
		if d := s.wait.Quantile(0.5); d > 0 {
			low, high = min(low, d.Seconds()), max(high, s.wait.Quantile(0.99).Seconds())
		}
	}
	if math.IsInf(low, 1) {
		low, high = 0.001, 1
	}
	low, high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	if high/low < 100 {
		high = low * 100
	}
	series := func(class, name string, q float64) chartLine {
		l := chartLine{Class: class, Name: name}
		l.draw(samples, func(s moment) (float64, bool) {
			d := s.wait.Quantile(q)
			return math.Log(d.Seconds()/low) / math.Log(high/low), d > 0
		})
		l.Areas = nil
		for _, s := range samples {
			if d := s.wait.Quantile(q); d > 0 {
				l.Now = "≤ " + short(d)
			}
		}
		if l.Now == "" {
			l.Now, c.Empty = "–", "No first attempt yet"
		}
		return l
	}
	c.Lines = []chartLine{series("median", "half within", 0.5), series("tail", "99 % within", 0.99)}
	c.Top, c.Mid, c.Low = short(asSeconds(high)), short(asSeconds(math.Sqrt(high*low))), short(asSeconds(low))
	c.describe(samples)
	return c
}

func (c *chart) describe(samples []moment) {
	if len(samples) < 2 {
		c.Empty = "The first samples come within ten seconds."
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, the last %s.", c.Title, minutes(samples))
	for _, l := range c.Lines {
		fmt.Fprintf(&b, " %s now: %s.", l.Name, l.Now)
	}
	c.Summary = b.String()
}

// minutes says how long samples go back.
func minutes(samples []moment) string {
	var all time.Duration
	for _, s := range samples {
		all += s.took
	}
	return short(all)
}

// draw makes the parts of a line. height is between 0 and 1; not ok: there is a gap.
func (l *chartLine) draw(samples []moment, height func(moment) (h float64, ok bool)) {
	step := chartWidth / (samplesKept - 1)
	x := chartWidth - step*float64(len(samples)-1)
	var points []string
	from := x
	end := func(last float64) {
		if len(points) > 0 {
			if len(points) == 1 { // a point would not be seen
				points = append(points, fmt.Sprintf("%.1f,%s", last+step/2, strings.SplitN(points[0], ",", 2)[1]))
			}
			line := strings.Join(points, " ")
			l.Parts = append(l.Parts, line)
			l.Areas = append(l.Areas, fmt.Sprintf("%.1f,%.0f %s %.1f,%.0f", from, chartHeight, line, last, chartHeight))
		}
		points = nil
	}
	for i, s := range samples {
		at := x + step*float64(i)
		h, ok := height(s)
		if !ok {
			end(at - step)
			continue
		}
		if len(points) == 0 {
			from = at
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f", at, chartHeight*(1-min(max(h, 0), 1))))
	}
	end(chartWidth)
}

// niceCeiling returns 1, 2 or 5 times a power of ten, not below n.
func niceCeiling(n float64) float64 {
	if n <= 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(n)))
	for _, times := range []float64{1, 2, 5} {
		if n <= times*power {
			return times * power
		}
	}
	return 10 * power
}

func perSecond(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 10:
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

func asSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
