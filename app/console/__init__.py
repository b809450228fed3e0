"""
The web console at `/console`: what an operator and a caller see of tasks, webhooks and the queue, in a browser.

How to add a page: a module with a `router` of `app.web.Router`, listed in `application.py`, and a template that extends
`base.html`. Its routes have whole paths below `/console` and take what they need as dependencies:

- `visitor: VisitorDep` is who is signed in; `visitor.caller` goes to the services, which answer NotFound for what this
  caller may not read. `visitor.acting_for(row)` is the caller to change a row as: its owner, for an admin too.
- `pages: PagesDep` renders: `pages.render(request, "task.html", task=task)`. Templates have `visitor`, `url("/path")`
  for links, `asset("name")` for files of `static`, and the filters of `rendering.py`; everything is escaped.
- A POST route takes `form: FormDep`, which has checked that the form is ours, and ends with
  `pages.redirect("/console/tasks/…", "What was done.")`. The template puts `{{ csrf() }}` into the form.

Errors of `app.errors` and `Refused` become pages. Without JavaScript everything works but what is live.
"""
