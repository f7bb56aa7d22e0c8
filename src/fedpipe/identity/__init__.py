"""Who is who: keys, enrolment, and what each may do in the store."""
