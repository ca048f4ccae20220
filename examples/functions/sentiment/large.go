package sentiment

import (
	_ "embed"
	"hash/fnv"
	"math"
	"strings"
)

//go:embed train.tsv
var trainTSV string

const (
	slots  = 1 << 16 // weights; features share them by hash
	epochs = 40
	rate   = 0.5
	decay  = 1e-2 // chosen by cross-validation on train.tsv alone
)

// Learned is the large variant: logistic regression over words, pairs of words
// and pieces of words.
type Learned struct {
	weights []float64
	bias    float64
}

// NewLearned learns from the sentences that come with the package. It takes
// tens of milliseconds, and always comes to the same weights.
func NewLearned() (*Learned, error) {
	examples, err := ParseExamples(trainTSV)
	if err != nil {
		return nil, err
	}
	return Learn(examples), nil
}

// Learn fits a model to the examples by stochastic gradient descent, in their
// order, positive and negative in turn.
func Learn(examples []Example) *Learned {
	m := &Learned{weights: make([]float64, slots)}
	rows := make([][]uint32, len(examples))
	for i, e := range examples {
		rows[i] = features(e.Text)
	}
	order := interleave(examples)
	for epoch := range epochs {
		step := rate / (1 + float64(epoch)/8)
		for _, i := range order {
			want := 0.0
			if examples[i].Positive {
				want = 1
			}
			err := want - m.score(rows[i])
			m.bias += step * err / 10
			gain := step * err / math.Sqrt(float64(len(rows[i])))
			for _, f := range rows[i] {
				m.weights[f] += gain - step*decay*m.weights[f]
			}
		}
	}
	return m
}

// interleave orders examples so that the labels alternate while both last.
func interleave(examples []Example) []int {
	var by [2][]int
	for i, e := range examples {
		k := 0
		if e.Positive {
			k = 1
		}
		by[k] = append(by[k], i)
	}
	var out []int
	for i := range max(len(by[0]), len(by[1])) {
		for _, side := range by {
			if i < len(side) {
				out = append(out, side[i])
			}
		}
	}
	return out
}

// Positive says how likely the text is positive, 0 to 1.
func (m *Learned) Positive(text string) float64 { return m.score(features(text)) }

func (m *Learned) score(row []uint32) float64 {
	if len(row) == 0 {
		return 0.5
	}
	sum := m.bias
	for _, f := range row {
		sum += m.weights[f] / math.Sqrt(float64(len(row)))
	}
	return 1 / (1 + math.Exp(-sum))
}

// features are a text's words, pairs of neighbours, and pieces of three to
// five letters, each as the slot of its weight.
func features(text string) []uint32 {
	var out []uint32
	add := func(kind, s string) {
		h := fnv.New32a()
		h.Write([]byte(kind))
		h.Write([]byte(s))
		out = append(out, h.Sum32()%slots)
	}
	ws := words(text)
	for i, w := range ws {
		add("word ", w)
		if i > 0 {
			add("pair ", ws[i-1]+" "+w)
		}
	}
	letters := []rune(" " + strings.Join(ws, " ") + " ")
	for n := 3; n <= 5; n++ {
		for i := 0; i+n <= len(letters); i++ {
			add("piece ", string(letters[i:i+n]))
		}
	}
	return out
}
