package simulate

import (
	"cmp"
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// WriteSVG draws the report: carbon, cost and wait by policy, and below that the
// work over time by region, of home and of isobar where both were played, on
// one scale; else of the policy that was.
func (r *Report) WriteSVG(w io.Writer) error {
	p := picture{r: r, y: 24}
	p.text(plotMargin, p.y, "start", `font-size="15" font-weight="bold"`, fmt.Sprintf("%d tasks over %d regions, %s",
		len(r.world.jobs), len(r.world.regions), r.objectiveWords()))
	p.y += 14
	p.bars()
	p.works()
	p.sources()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
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
	plotMargin = 64
	plotRight  = plotWidth - 24
	barHeight  = 16
	areaHeight = 190
	areaSlots  = 240
	// glyph is about how wide a character is.
	glyph = 6.7
	// mostRegions have a colour of their own; the rest is drawn as one.
	mostRegions = 19
	rest        = "other regions"
)

// picture is an SVG in the making; y is how far down it reaches.
type picture struct {
	r *Report
	b strings.Builder
	y int
}

func (p *picture) text(x, y int, anchor, style, s string) {
	if style != "" {
		style = " " + style
	}
	fmt.Fprintf(&p.b, `<text x="%d" y="%d" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, style, html.EscapeString(s))
}

func (p *picture) line(x1, y1, x2, y2 float64, colour string) {
	fmt.Fprintf(&p.b, `<path d="M%.1f %.1fL%.1f %.1f" stroke="%s" fill="none"/>`+"\n", x1, y1, x2, y2, colour)
}

// policyColour is of Okabe and Ito's palette, told apart with any eyes.
func policyColour(name string) string {
	switch Policy(name) {
	case Cheapest:
		return "#e69f00"
	case Greenest:
		return "#009e73"
	case Isobar:
		return "#0072b2"
	case Oracle:
		return "#cc79a7"
	default:
		return "#8c8c8c"
	}
}

// regionColour is of Tableau's twenty, the strong ones first; what is drawn as
// one is grey.
func regionColour(i int) string {
	colours := [...]string{
		"#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#d37295", "#499894",
		"#a0cbe8", "#ffbe7d", "#8cd17d", "#ff9d9a", "#d4a6c8", "#f1ce63", "#86bcb6", "#d7b5a6", "#fabfd2",
	}
	if i >= len(colours) {
		return "#bab0ac"
	}
	return colours[i]
}

// bars draws three charts side by side, each with its own scale.
func (p *picture) bars() {
	charts := [...]struct {
		title string
		of    func(*PolicyReport) (bar, whisker float64, label string)
	}{
		{"carbon, kgCO2eq", func(x *PolicyReport) (float64, float64, string) { return x.GCO2eq, 0, digits(x.GCO2eq / 1000) }},
		{"cost, USD", func(x *PolicyReport) (float64, float64, string) { return x.USD, 0, digits(x.USD) }},
		{"wait: mean, and line to p99", func(x *PolicyReport) (float64, float64, string) {
			return x.MeanWaitS, x.P99WaitS, seconds(x.MeanWaitS) + "; " + seconds(x.P99WaitS)
		}},
	}
	const left, gap = 66, 18
	const width = (plotRight - 4) / len(charts)
	for c := range charts {
		x, most, longest := 4+c*width+left, 0.0, 0
		p.text(x, p.y+18, "start", `font-weight="bold"`, charts[c].title)
		for i := range p.r.Policies {
			v, w, label := charts[c].of(&p.r.Policies[i])
			most, longest = max(most, v, w), max(longest, len(label))
		}
		// The longest bar leaves room for the widest label.
		scale := float64(width-left-gap) - glyph*float64(longest)
		for i := range p.r.Policies {
			name := p.r.Policies[i].Name
			v, whisker, label := charts[c].of(&p.r.Policies[i])
			y, length, reach := p.y+28+i*(barHeight+6), 0.0, 0.0
			if most > 0 {
				length, reach = v/most*scale, whisker/most*scale
			}
			p.text(x-6, y+12, "end", "", name)
			fmt.Fprintf(&p.b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, max(length, 1), barHeight, policyColour(name))
			if reach > length {
				p.line(float64(x)+length, float64(y)+barHeight/2, float64(x)+reach, float64(y)+barHeight/2, policyColour(name))
				p.line(float64(x)+reach, float64(y)+3, float64(x)+reach, float64(y)+barHeight-3, policyColour(name))
			}
			p.text(x+int(max(length, reach))+6, y+12, "start", "", label)
		}
	}
	p.y += 28 + len(p.r.Policies)*(barHeight+6) + 18
}

// works draws the work of one policy or two, and what the colours mean.
func (p *picture) works() {
	panels := p.panels()
	areas := make([]area, 0, len(panels))
	var from, to time.Duration
	for _, at := range panels {
		a := p.r.work(at)
		if len(areas) == 0 || a.to > to {
			from, to = a.from, a.to
		}
		areas = append(areas, a)
	}
	shown := p.shown(areas)
	most := 0.0
	for i := range areas {
		areas[i].stretch(to)
		most = max(most, areas[i].highest())
	}
	for i := range areas {
		p.panel(&areas[i], p.r.Policies[panels[i]].Name, shown, niceAbove(most), i == len(areas)-1, from, to)
	}
	p.legend(shown)
}

// panels are the policies whose work is drawn.
func (p *picture) panels() []int {
	find := func(name Policy) int {
		return slices.IndexFunc(p.r.Policies, func(x PolicyReport) bool { return x.Name == string(name) })
	}
	home, isobar := find(Home), find(Isobar)
	switch {
	case home >= 0 && isobar >= 0:
		return []int{home, isobar}
	case isobar >= 0:
		return []int{isobar}
	default:
		return []int{0}
	}
}

// shown lists the regions that work in any panel, those that work most first;
// the last may stand for the rest, with place -1.
func (p *picture) shown(areas []area) []int {
	total := make([]float64, len(p.r.world.regions))
	for _, a := range areas {
		for i, slots := range a.slots {
			for _, x := range slots {
				total[i] += x * float64(a.width)
			}
		}
	}
	var out []int
	for i, x := range total {
		if x > 0 {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(total[b], total[a]) })
	if len(out) > mostRegions {
		out = append(out[:mostRegions], -1)
	}
	return out
}

// panel draws one policy's work, region upon region, those that work most below.
func (p *picture) panel(a *area, name string, shown []int, most float64, last bool, from, to time.Duration) {
	top := p.y + 26
	bottom := float64(top + areaHeight)
	p.text(plotMargin, p.y+14, "start", `font-weight="bold"`, "tasks running, by region: "+name)
	x := func(k int) float64 { return plotMargin + float64(k)*(plotRight-plotMargin)/areaSlots }
	y := func(v float64) float64 { return bottom - v/most*areaHeight }
	const lines = 4
	for k := range lines + 1 {
		v := most * float64(k) / lines
		p.line(plotMargin, y(v), plotRight, y(v), "#e4e4e4")
		p.text(plotMargin-6, int(y(v))+4, "end", "", digits(v))
	}
	base := make([]float64, areaSlots)
	for colour, place := range shown {
		upper := slices.Clone(base)
		for i, slots := range a.slots {
			if i == place || (place < 0 && !slices.Contains(shown, i)) {
				for k := range upper {
					upper[k] += slots[k]
				}
			}
		}
		var outline strings.Builder
		for k := range areaSlots {
			fmt.Fprintf(&outline, "%.1f,%.1f %.1f,%.1f ", x(k), y(upper[k]), x(k+1), y(upper[k]))
		}
		for k := areaSlots - 1; k >= 0; k-- {
			fmt.Fprintf(&outline, "%.1f,%.1f %.1f,%.1f ", x(k+1), y(base[k]), x(k), y(base[k]))
		}
		fmt.Fprintf(&p.b, `<polygon points="%s" fill="%s"/>`+"\n", strings.TrimSpace(outline.String()), regionColour(colour))
		base = upper
	}
	p.line(plotMargin, bottom, plotRight, bottom, "#222")
	p.y = top + areaHeight + 12
	if last {
		p.times(from, to, bottom)
		p.y += 22
	}
}

// times writes instants below the last panel, at full hours or days of UTC.
func (p *picture) times(from, to time.Duration, bottom float64) {
	epoch := p.r.world.table.Start()
	begin, length := epoch.Add(from), to-from
	step := time.Second
	for _, s := range [...]time.Duration{
		10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
		24 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour, 28 * 24 * time.Hour, 91 * 24 * time.Hour, 364 * 24 * time.Hour,
	} {
		if step = s; length/step <= 6 {
			break
		}
	}
	layout := "2006-01-02 15:04"
	switch {
	case step >= 24*time.Hour:
		layout = time.DateOnly
	case step < time.Minute:
		layout = "15:04:05"
	}
	for at := begin.Truncate(step); ; at = at.Add(step) {
		x := plotMargin + float64(at.Sub(begin))/float64(length)*(plotRight-plotMargin)
		if x > plotRight {
			return
		}
		if x < plotMargin-0.5 {
			continue
		}
		p.line(x, bottom, x, bottom+5, "#222")
		if half := glyph * float64(len(layout)) / 2; x+half <= plotWidth && x-half >= 0 {
			p.text(int(x), int(bottom)+18, "middle", "", at.UTC().Format(layout))
		}
	}
}

// legend lists the colours, as many in a row as there is room for.
func (p *picture) legend(shown []int) {
	x := float64(plotMargin)
	p.y += 10
	for colour, place := range shown {
		name := rest
		if place >= 0 {
			name = p.r.world.regions[place].Name
		}
		width := 18 + glyph*float64(len(name)) + 16
		if x+width > plotWidth && x > plotMargin {
			x = plotMargin
			p.y += 20
		}
		fmt.Fprintf(&p.b, `<rect x="%.1f" y="%d" width="12" height="12" fill="%s"/>`+"\n", x, p.y-10, regionColour(colour))
		p.text(int(x)+18, p.y, "start", "", name)
		x += width
	}
	p.y += 12
}

// sources say what the figures are from.
func (p *picture) sources() {
	s := p.r.Sources
	for _, line := range [...]string{
		"trace: " + s.Trace, "mesh: " + s.Mesh, "carbon: " + s.Carbon,
		"energy: " + s.Energy + "; network: " + s.Network + "; embodied: " + s.Embodied,
	} {
		const most = 150
		if runes := []rune(line); len(runes) > most {
			line = string(runes[:most-1]) + "…"
		}
		p.y += 15
		p.text(plotMargin, p.y, "start", `font-size="11" fill="#666"`, line)
	}
	p.y += 14
}

// niceAbove is a round number that is not below x: it divides by four without
// many digits.
func niceAbove(x float64) float64 {
	if x <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(x)))
	for _, m := range [...]float64{1, 1.2, 1.6, 2, 2.4, 3, 4, 6, 8} {
		if x <= m*unit {
			return m * unit
		}
	}
	return 10 * unit
}

// area is the mean number of tasks running in each region and slot of time.
type area struct {
	from, to, width time.Duration
	slots           [][]float64
}

// highest is the most that runs in all regions.
func (a *area) highest() float64 {
	most := 0.0
	for k := range areaSlots {
		sum := 0.0
		for i := range a.slots {
			sum += a.slots[i][k]
		}
		most = max(most, sum)
	}
	return most
}

// stretch squeezes the slots so that the last ends at an instant not before the
// area's own end.
func (a *area) stretch(to time.Duration) {
	if to <= a.to {
		return
	}
	wide := (to - a.from + areaSlots - 1) / areaSlots
	for i, slots := range a.slots {
		out := make([]float64, areaSlots)
		for k, x := range slots {
			spread(out, wide, time.Duration(k)*a.width, time.Duration(k+1)*a.width, x)
		}
		a.slots[i] = out
	}
	a.width, a.to = wide, to
}

// spread adds x, which runs over [from, to), to slots of a width.
func spread(slots []float64, width, from, to time.Duration, x float64) {
	for at := from; at < to; {
		k := int(at / width)
		till := min(time.Duration(k+1)*width, to)
		if k < len(slots) {
			slots[k] += x * float64(till-at) / float64(width)
		}
		at = till
	}
}

// work is the area of one policy.
func (r *Report) work(policy int) area {
	a := area{from: r.world.start, slots: make([][]float64, len(r.world.regions))}
	for i := range a.slots {
		a.slots[i] = make([]float64, areaSlots)
	}
	a.to = a.from + time.Second
	schedule := r.schedules[policy]
	for i := range schedule {
		if p := &schedule[i]; p.option != nil {
			a.to = max(a.to, p.finish(r.world.jobs[i].run(p.option)))
		}
	}
	a.width = (a.to - a.from + areaSlots - 1) / areaSlots
	for i := range schedule {
		p := &schedule[i]
		if p.option == nil {
			continue
		}
		p.spans(r.world.jobs[i].run(p.option), func(s span) {
			spread(a.slots[p.option.region], a.width, s.from-a.from, s.to-a.from, 1)
		})
	}
	return a
}
