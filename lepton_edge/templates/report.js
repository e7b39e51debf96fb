"use strict";
// Sort the table by the column whose heading is pressed; candidates that failed and missing numbers stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[head.cellIndex];
      return cell && cell.dataset.sort !== undefined && cell.dataset.sort !== "" ? Number(cell.dataset.sort) : null;
    };
    const name = (row) => row.cells[0].dataset.name;
    const byName = head.cellIndex === 0;
    const rows = Array.from(body.rows);
    rows.sort((a, b) => {
      const failed = a.classList.contains("failed") - b.classList.contains("failed");
      if (failed) return failed;
      if (byName) return (descending ? -1 : 1) * name(a).localeCompare(name(b));
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return x === y ? 0 : (descending ? -1 : 1) * (x < y ? -1 : 1);
    });
    body.append(...rows);
  });
}
