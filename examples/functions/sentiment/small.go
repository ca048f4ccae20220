package sentiment

import "slices"

// Lexicon is the small variant: the share of positive words among those it
// knows. It knows no grammar, so "not good" is good to it.
func Lexicon(text string) float64 {
	content := []string{
		"amazing", "beautiful", "best", "better", "brilliant", "clean", "easy", "enjoyed", "excellent", "fantastic",
		"fast", "fresh", "friendly", "fun", "good", "great", "happy", "helpful", "kind", "love",
		"lovely", "loves", "nice", "perfect", "perfectly", "quick", "recommend", "thank", "thanks", "wonderful",
	}
	discontent := []string{
		"angry", "annoyed", "awful", "bad", "boring", "broke", "broken", "cold", "dirty", "disappointment",
		"expensive", "failed", "hate", "horrible", "late", "lost", "noisy", "poor", "problem", "rude",
		"sad", "slow", "terrible", "trouble", "ugly", "useless", "worse", "worst", "wrong", "unhappy",
	}
	good, bad := 0, 0
	for _, w := range words(text) {
		if slices.Contains(content, w) {
			good++
		}
		if slices.Contains(discontent, w) {
			bad++
		}
	}
	return float64(good+1) / float64(good+bad+2)
}
