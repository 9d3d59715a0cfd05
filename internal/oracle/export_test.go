package oracle

// Insert writes a run by hand, where the oracle reads runs.
func (o *Oracle) Insert(r *Run) error { return o.runs.Create(r).Error }
