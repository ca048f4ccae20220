package simulate

import (
	"fmt"
	"html"
	"io"
	"strings"
	"time"
)

// WriteSVG draws the report: carbon, cost and wait by policy, and the work over
// time by region of the last policy but the oracle, or of the only one.
func (r *Report) WriteSVG(w io.Writer) error {
	var p picture
	p.bars(r)
	p.work(r)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		plotWidth, p.y, plotWidth, p.y)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	b.WriteString(p.b.String())
	b.WriteString("</svg>\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("simulate: write plot: %w", err)
	}
	return nil
}

const (
	plotWidth  = 960
	plotMargin = 60
	barHeight  = 18
	areaHeight = 260
	areaSlots  = 240
)

// picture is an SVG in the making; y is how far down it reaches.
type picture struct {
	b strings.Builder
	y int
}

func (p *picture) text(x, y int, anchor, s string) {
	fmt.Fprintf(&p.b, `<text x="%d" y="%d" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
}

// colour of the i-th of n things: far apart on the circle of hues.
func colour(i int) string {
	return fmt.Sprintf("hsl(%d,%d%%,%d%%)", (i*137)%360, 55+i%3*10, 45+i%2*12)
}

// bars draws three charts side by side, each with its own scale.
func (p *picture) bars(r *Report) {
	charts := [...]struct {
		title string
		of    func(*PolicyReport) (float64, string)
	}{
		{"carbon, kgCO2eq", func(x *PolicyReport) (float64, string) { return x.GCO2eq, digits(x.GCO2eq / 1000) }},
		{"cost, USD", func(x *PolicyReport) (float64, string) { return x.USD, digits(x.USD) }},
		{"mean wait", func(x *PolicyReport) (float64, string) { return x.MeanWaitS, seconds(x.MeanWaitS) }},
	}
	const width = plotWidth / len(charts)
	for c := range charts {
		x, most := c*width, 0.0
		p.text(x+plotMargin+10, 24, "start", charts[c].title)
		for i := range r.Policies {
			v, _ := charts[c].of(&r.Policies[i])
			most = max(most, v)
		}
		for i := range r.Policies {
			v, label := charts[c].of(&r.Policies[i])
			y, length := 36+i*(barHeight+6), 0.0
			if most > 0 {
				length = v / most * float64(width-plotMargin-90)
			}
			p.text(x+plotMargin+4, y+13, "end", r.Policies[i].Name)
			fmt.Fprintf(&p.b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x+plotMargin+10, y, length, barHeight, colour(i))
			p.text(x+plotMargin+14+int(length), y+13, "start", label)
		}
	}
	p.y = 36 + len(r.Policies)*(barHeight+6) + 20
}

// work draws the tasks running over time, region upon region.
func (p *picture) work(r *Report) {
	at := 0
	for i := range r.Policies {
		if r.Policies[i].Name == string(Isobar) || (r.Policies[at].Name != string(Isobar) && r.Policies[i].Name != string(Oracle)) {
			at = i
		}
	}
	from, to, slots := r.work(at)
	top, bottom := p.y+20, p.y+20+areaHeight
	p.text(plotMargin, p.y+10, "start", "tasks running by region, "+r.Policies[at].Name)
	most := 0.0
	for k := range areaSlots {
		sum := 0.0
		for i := range slots {
			sum += slots[i][k]
		}
		most = max(most, sum)
	}
	const right = plotWidth - 20
	x := func(k int) float64 { return plotMargin + float64(k)*(right-plotMargin)/areaSlots }
	base := make([]float64, areaSlots)
	legend := 0
	for i := range slots {
		var line strings.Builder
		works := false
		for k := range areaSlots {
			upper := base[k] + slots[i][k]
			works = works || slots[i][k] > 0
			y := float64(bottom) - upper/max(most, 1e-9)*areaHeight
			fmt.Fprintf(&line, "%.1f,%.1f %.1f,%.1f ", x(k), y, x(k+1), y)
		}
		if !works {
			continue
		}
		for k := areaSlots - 1; k >= 0; k-- {
			y := float64(bottom) - base[k]/max(most, 1e-9)*areaHeight
			fmt.Fprintf(&line, "%.1f,%.1f %.1f,%.1f ", x(k+1), y, x(k), y)
			base[k] += slots[i][k]
		}
		fmt.Fprintf(&p.b, `<polygon points="%s" fill="%s"/>`+"\n", strings.TrimSpace(line.String()), colour(i))
		lx, ly := plotMargin+legend%5*175, bottom+40+legend/5*18
		fmt.Fprintf(&p.b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/>`+"\n", lx, ly-10, colour(i))
		p.text(lx+17, ly, "start", r.world.regions[i].Name)
		legend++
	}
	fmt.Fprintf(&p.b, `<path d="M%d %dV%dH%d" fill="none" stroke="black"/>`+"\n", plotMargin, top, bottom, right)
	p.text(plotMargin-6, top+10, "end", digits(most))
	p.text(plotMargin-6, bottom, "end", "0")
	epoch := r.world.table.Start()
	p.text(plotMargin, bottom+18, "start", epoch.Add(from).UTC().Format("2006-01-02 15:04"))
	p.text(right, bottom+18, "end", epoch.Add(to).UTC().Format("2006-01-02 15:04"))
	p.y = bottom + 40 + (legend+4)/5*18 + 10
}

// work is the mean number of tasks running in each region and slot of time.
func (r *Report) work(policy int) (from, to time.Duration, slots [][]float64) {
	slots = make([][]float64, len(r.world.regions))
	for i := range slots {
		slots[i] = make([]float64, areaSlots)
	}
	from = r.world.start
	to = from + time.Second
	schedule := r.schedules[policy]
	for i := range schedule {
		if p := &schedule[i]; p.option != nil {
			to = max(to, p.finish(r.world.jobs[i].run(p.option)))
		}
	}
	width := (to - from + areaSlots - 1) / areaSlots
	for i := range schedule {
		p := &schedule[i]
		if p.option == nil {
			continue
		}
		p.spans(r.world.jobs[i].run(p.option), func(s span) {
			for at := s.from; at < s.to; {
				k := int((at - from) / width)
				till := min(from+time.Duration(k+1)*width, s.to)
				slots[p.option.region][k] += float64(till-at) / float64(width)
				at = till
			}
		})
	}
	return from, to, slots
}
