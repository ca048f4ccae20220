package stream

// Remembered counts what a leader keeps by the names of streams.
func (s *Streams) Remembered() int {
	l, err := s.leading()
	if err != nil {
		return 0
	}
	l.publishing.mu.Lock()
	defer l.publishing.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.wakes) + len(l.kept) + len(l.placed) + len(l.publishing.of) + len(l.drops)
}
