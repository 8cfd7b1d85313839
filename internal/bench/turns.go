//go:build linux

package main

import "fmt"

// An arm is one of the things that are compared.
type arm struct {
	name string
	run  func(round int) error
}

// inTurns runs all arms in every round, and begins each round with another one: a change
// of the machine's speed then favours no arm.
func (b *bench) inTurns(scenario string, arms []arm) error {
	for round := range b.rounds {
		for i := range arms {
			arm := arms[(round+i)%len(arms)]
			began := now()
			if err := arm.run(round); err != nil {
				return fmt.Errorf("%s, round %d: %w", arm.name, round+1, err)
			}
			b.report.progress("%s %d/%d, %s: %.1f s", scenario, round+1, b.rounds, arm.name, (now() - began).Seconds())
		}
	}
	return nil
}

// keep appends a result unless there was an error.
func keep[T any](to *[]T) func(T, error) error {
	return func(result T, err error) error {
		if err == nil {
			*to = append(*to, result)
		}
		return err
	}
}
