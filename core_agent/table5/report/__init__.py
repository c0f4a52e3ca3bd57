from core_agent.table5.report.page import write_report

__all__ = ["write_report"]
