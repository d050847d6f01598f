"""What people see: lines, tables, pictures and JSON documents."""
