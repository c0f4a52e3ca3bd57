from core_agent.report.page import write_report

__all__ = ["write_report"]
